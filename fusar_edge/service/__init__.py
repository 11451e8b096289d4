"""Live captioning: scenes arrive, records leave, nothing is lost. Needs the extra `service`."""
