"""Values that processes exchange: messages, events, records, faults. No I/O, no Ray."""
