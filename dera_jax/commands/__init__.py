"""A file is a command; what they share is in options/ and process/."""
