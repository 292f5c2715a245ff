"""The relay: carries generations from Kafka through one gRPC service into signals.v1. A stage hands it ~25 lines."""
