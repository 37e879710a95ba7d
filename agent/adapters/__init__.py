"""One foreign thing each: broker, network, disk, processes, keys. Adapters do not know each other."""
