"""The mesh, what lies where, several processes, memory and time."""
