"""The embedded default: Apache Kafka from jars and every room as a process, on one machine, without containers."""
