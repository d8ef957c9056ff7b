"""The documents' experiments and claims, each a number, a picture and a verdict."""
