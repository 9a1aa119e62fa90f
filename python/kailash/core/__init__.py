"""Circuit breakers, bulkhead partitions and health monitoring."""
