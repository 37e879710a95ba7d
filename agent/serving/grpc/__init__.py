"""The Open Inference Protocol over gRPC. Imported only where its port is configured: it needs the extra `grpc`."""
