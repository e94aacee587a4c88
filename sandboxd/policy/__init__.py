"""What a job may do: policies that only ever tighten, and seccomp profiles compiled from OCI JSON."""
