"""Search: strategies and the candidates that are tried."""
