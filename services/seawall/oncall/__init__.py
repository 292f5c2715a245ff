"""What an on-call engineer asks of a running mesh, as data for commands and the console. No content anywhere."""
