"""What a job may do: policies as data, merged so that they only ever tighten, and seccomp profiles compiled from OCI JSON."""
