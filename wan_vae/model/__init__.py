"""The network: layers, blocks, encoder and decoder, none of which knows how a clip is cut up (see `halo`)."""
