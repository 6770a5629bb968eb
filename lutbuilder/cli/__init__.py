"""The command line: one file a command group; each parses, makes one call and renders. Imports sit in functions."""
