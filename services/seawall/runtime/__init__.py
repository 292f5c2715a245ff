"""What every room stands on: settings, the broker seam, gRPC, sealing, the content store, telemetry."""
