"""What an SPM does, one verb in one file. Every operation is safe to repeat."""
