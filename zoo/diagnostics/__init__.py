"""The zoo's claims as tools for any ``nn.Module``, ours or not. Imports no other room."""
