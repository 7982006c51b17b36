"""The machine around a program: files, devices, processes and the command line. Nothing here knows about models."""
