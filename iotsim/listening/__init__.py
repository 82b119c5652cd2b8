"""The other direction: commands that reach devices through a broker, and their answers."""
