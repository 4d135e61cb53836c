"""Stand-ins for a clock, a storage domain, a guard and a hypervisor; contract tests hold them to the real ones."""
