"""An index of a catalogue: built, kept up to date, searched."""
