"""Tools for any ``nn.Module``, ours or not. Imports no other package but core and errors."""
