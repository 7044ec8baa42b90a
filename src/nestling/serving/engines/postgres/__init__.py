"""The search on PostgreSQL with pgvector."""

from nestling.environment import needed

needed("PostgreSQL", "psycopg", "pgvector.psycopg")
