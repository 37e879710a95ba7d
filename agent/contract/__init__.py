"""What crosses a wire: topics, commands, reports and manifests, built and parsed in this one place. No I/O."""
