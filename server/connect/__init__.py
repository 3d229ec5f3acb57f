"""What the server tells other systems by itself: MQTT and webhooks."""
