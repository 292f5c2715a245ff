"""Pure domain logic: no Kafka, gRPC, telemetry or model runtime is imported below this package."""
