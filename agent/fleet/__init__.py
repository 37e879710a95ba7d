"""The operator's side: keys, signing, and commands to devices over MQTT."""
