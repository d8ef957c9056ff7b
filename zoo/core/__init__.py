"""Small things with no better home: devices, modes, seeds, files, pictures."""
