"""Model definitions: configuration, weights, layers, forward passes."""
