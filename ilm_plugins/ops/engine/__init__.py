"""The primitive: its autograd functions, operators, and backends, for networks of any kind."""
