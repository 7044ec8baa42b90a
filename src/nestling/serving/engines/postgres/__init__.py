"""The search on PostgreSQL with pgvector."""
