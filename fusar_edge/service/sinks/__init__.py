"""Who is told of results. Each sink has a Courier, a thread that carries its messages out of the journal.

    sink.py      what a sink is, and how it says that it could not
    courier.py   the thread: due messages -> send -> delivered; waits longer after each failure
    files.py     results/ID/result.geojson and item.json
    mqtt.py      MQTT 5, QoS 1, over mqtt_connection.py
    webhook.py   HTTP POST, signed

In the journal and in files a result is there exactly once. MQTT and webhooks are told at least once: a message is sent
again where the process was killed between the receiver's thanks and the journal's note of it; its key tells.
"""
