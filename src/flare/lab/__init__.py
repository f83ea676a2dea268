"""A small internet on one machine: NAT routers in network namespaces, delay and loss in user space."""
