"""The Tinker service: many people train LoRAs on one base model, and sample from them."""
