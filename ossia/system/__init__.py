"""This machine: memory, processors, huge pages and files."""
