"""What commands are made of where a command would have two ideas."""
