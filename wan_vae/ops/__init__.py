"""The hot operations of the network, each with a plain way and faster ones for the machines that have them."""
