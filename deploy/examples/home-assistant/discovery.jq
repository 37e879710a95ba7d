# From a device's `capabilities` to what Home Assistant wants to know of it: one message for each entity, as `topic` and
# `payload`. Arguments: prefix and device.
#
# https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery

"\($prefix)/\($device)" as $root
| {
    availability_topic: "\($root)/presence",
    availability_template: "{{ value_json.state }}",
    qos: 1,
    origin: {name: "nibbled"},
    device: ({
      identifiers: ["nibbled_\($device)"],
      name: $device,
      manufacturer: "nibbled",
      model: .hardware,
      sw_version: .agent
    } | with_entries(select(.value != null)))
  } as $common
# Health is told every 30 s by default, and goes stale when nobody tells it any more.
| {state_topic: "\($root)/health", expire_after: 120} as $health
| [
    {component: "sensor", id: "served", name: "Served", state_topic: "\($root)/reported",
     value_template: "{% for name, model in value_json.models.items() %}{{ name }} {{ model.version }} {{ model.method }}{{ '' if loop.last else ', ' }}{% else %}nothing{% endfor %}",
     json_attributes_topic: "\($root)/reported",
     json_attributes_template: "{{ value_json.models | tojson }}"},
    {component: "sensor", id: "status", name: "Health", device_class: "enum", options: ["ok", "degraded", "failing"],
     value_template: "{{ value_json.status }}",
     json_attributes_topic: "\($root)/health",
     json_attributes_template: "{{ {'reasons': value_json.reasons} | tojson }}"} + $health,
    {component: "binary_sensor", id: "problem", name: "Problem", device_class: "problem",
     value_template: "{{ 'OFF' if value_json.status == 'ok' else 'ON' }}"} + $health,
    {component: "sensor", id: "memory_available", name: "Memory available", device_class: "data_size",
     unit_of_measurement: "B", state_class: "measurement", entity_category: "diagnostic",
     value_template: "{{ value_json.device.memory.available_bytes }}"} + $health,
    {component: "sensor", id: "gpu_temperature", name: "GPU temperature", device_class: "temperature",
     unit_of_measurement: "°C", state_class: "measurement", entity_category: "diagnostic",
     value_template: "{{ value_json.device.gpu.temperature_c if value_json.device.gpu else none }}"} + $health,
    {component: "sensor", id: "requests", name: "Requests", state_class: "total_increasing",
     entity_category: "diagnostic", state_topic: "\($root)/telemetry", expire_after: 120,
     value_template: "{{ value_json.requests }}"}
  ][]
| {
    topic: "homeassistant/\(.component)/nibbled_\($device)/\(.id)/config",
    payload: ($common + del(.component, .id) + {unique_id: "nibbled_\($device)_\(.id)"})
  }
