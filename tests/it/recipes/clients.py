"""Each recipe of the cookbook, tried with nats-py and paho-mqtt.

The environment variable RECIPES says which there are. The name of each that holds is printed.
"""

import asyncio
import json
import os
import queue
import signal

import nats
import nats.errors
import nats.js.errors
from nats.js.api import ConsumerConfig, KeyValueConfig
from paho.mqtt.client import CallbackAPIVersion, Client as MqttClient

TASK = json.loads(os.environ["RECIPES"])
CHIEF, PASSWORD = TASK["chief"], TASK["password"]
VERSION = tuple(int(it) for it in TASK["version"].split(".")[:2])
# Long enough for anything that is going to happen on a busy machine.
SOON = 30
# Enough for the server to wait for the client now and then.
KEYS, VALUE = 20_000, b"x" * 4096


class User:
    """A connection, and what the server has refused to it."""

    def __init__(self):
        self.refusals = []

    async def told(self, error):
        self.refusals.append(str(error).lower())

    def is_refused(self, subject):
        return any(f'to "{subject}"'.lower() in it for it in self.refusals)

    async def is_there(self):
        """Waits until the server has all that was sent: a first PING may overtake it."""
        for _ in range(2):
            await self.nats.flush(SOON)

    async def cannot(self, subject, attempt):
        """It fails, since the server refuses this subject to it."""
        self.refusals.clear()
        attempt = asyncio.ensure_future(attempt)
        await until(lambda: self.is_refused(subject))
        attempt.cancel()
        done = await asyncio.gather(attempt, return_exceptions=True)
        assert isinstance(done[0], BaseException), f"{subject}: it went well"


async def until(condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), SOON)


async def connect(name, prefix=None):
    user = User()
    user.nats = await nats.connect(
        TASK["nats"],
        user=name,
        password=PASSWORD,
        inbox_prefix=prefix or f"_INBOX_{name}",
        error_cb=user.told,
        allow_reconnect=False,
        connect_timeout=SOON,
    )
    user.js = user.nats.jetstream(timeout=SOON)
    return user


async def ask(user, chief, question):
    """A question of the cookbook, asked of the server."""
    verb, subject, queue_group = question["verb"], question["subject"], question["queue"] or ""
    user.refusals.clear()
    if verb == "pub":
        witness = await chief.nats.subscribe(subject)
        await chief.is_there()
        await user.nats.publish(subject, b"tried")
        if question["allowed"]:
            assert (await witness.next_msg(SOON)).data == b"tried"
        else:
            await until(lambda: user.is_refused(subject))
        await witness.unsubscribe()
    else:
        heard = await user.nats.subscribe(subject, queue=queue_group)
        if question["allowed"]:
            await user.is_there()
            sample = subject.replace("*", "sample").replace(">", "sample")
            await chief.nats.publish(sample, b"tried")
            assert (await heard.next_msg(SOON)).data == b"tried"
        else:
            await until(lambda: user.is_refused(subject))
        await heard.unsubscribe()


async def asker(user, chief):
    async def answer(message):
        await message.respond(b"done")

    served = await chief.nats.subscribe("orders.create", cb=answer)
    await chief.is_there()
    assert (await user.nats.request("orders.create", timeout=SOON)).data == b"done"
    # Without its prefix it waits for ever.
    without = await connect("shop", prefix="_INBOX")
    attempt = asyncio.ensure_future(without.nats.request("orders.create", timeout=SOON))
    await until(lambda: any('subscription to "_inbox.' in it for it in without.refusals))
    attempt.cancel()
    await without.nats.close()
    await served.unsubscribe()


async def answerer(user, chief):
    async def answer(message):
        await message.respond(b"one")
        await message.respond(b"two")

    user.refusals.clear()
    await user.nats.subscribe("orders.create", cb=answer)
    await user.is_there()
    assert (await chief.nats.request("orders.create", timeout=SOON)).data == b"one"
    await until(lambda: any("publish to" in it for it in user.refusals))


async def orders(chief):
    """The stream `ORDERS` with an order, and the consumers `worker` and `other`."""
    await chief.js.add_stream(name="ORDERS", subjects=["orders.>"])
    for name in ["worker", "other"]:
        await chief.js.add_consumer("ORDERS", ConsumerConfig(durable_name=name))


async def stream_publisher(user, chief):
    await orders(chief)
    assert (await user.js.publish("orders.new", b"one")).seq == 1
    await user.cannot("$JS.API.STREAM.INFO.ORDERS", user.js.stream_info("ORDERS"))
    await user.cannot("$JS.API.STREAM.PURGE.ORDERS", user.js.purge_stream("ORDERS"))
    await user.cannot("$JS.API.STREAM.DELETE.ORDERS", user.js.delete_stream("ORDERS"))
    assert (await chief.js.stream_info("ORDERS")).state.messages == 1
    await chief.js.delete_stream("ORDERS")


async def stream_worker(user, chief):
    await orders(chief)
    await chief.js.publish("orders.new", b"one")
    worker = await user.js.pull_subscribe_bind("worker", stream="ORDERS")
    [message] = await worker.fetch(1, timeout=SOON)
    assert message.data == b"one"
    await message.ack_sync(SOON)
    assert (await user.js.consumer_info("ORDERS", "worker")).ack_floor.stream_seq == 1
    other = await user.js.pull_subscribe_bind("other", stream="ORDERS")
    await user.cannot("$JS.API.CONSUMER.MSG.NEXT.ORDERS.other", other.fetch(1, timeout=SOON))
    mine = ConsumerConfig(durable_name="mine")
    await user.cannot(
        "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.mine", user.js.add_consumer("ORDERS", mine)
    )
    await user.cannot("$JS.API.STREAM.MSG.GET.ORDERS", user.js.get_msg("ORDERS", 1))
    await user.cannot("orders.new", user.js.publish("orders.new", b"two", timeout=SOON))
    await user.cannot(
        "$JS.API.CONSUMER.DELETE.ORDERS.worker", user.js.delete_consumer("ORDERS", "worker")
    )
    await chief.js.delete_stream("ORDERS")


async def config_reader(user, chief):
    secret = await chief.js.create_key_value(bucket="secret")
    await secret.put("code", b"1234")
    # nats-py makes a bucket that is not read directly, the other libraries one that is.
    for direct in [False, True]:
        config = await chief.js.create_key_value(
            KeyValueConfig(bucket="config", history=5, direct=direct)
        )
        await config.put("gone", b"soon")
        await config.delete("gone")
        first = await config.put("colour", b"red")
        await config.put("colour", b"green")
        bucket = await user.js.key_value("config")
        assert (await bucket.get("colour")).value == b"green"
        assert (await bucket.get("colour", revision=first)).value == b"red"
        assert await bucket.keys() == ["colour"]
        assert [it.value for it in await bucket.history("colour")] == [b"red", b"green"]
        assert (await bucket.status()).values == 4
        watcher = await bucket.watch("colour")
        assert (await watcher.updates(SOON)).value == b"green"
        assert await watcher.updates(SOON) is None
        await config.put("colour", b"blue")
        assert (await watcher.updates(SOON)).value == b"blue"
        await watcher.stop()

        await user.cannot("$KV.config.colour", bucket.put("colour", b"black"))
        await user.cannot("$KV.config.colour", bucket.delete("colour"))
        await user.cannot("$JS.API.STREAM.INFO.KV_secret", user.js.key_value("secret"))
        await user.cannot("$JS.API.STREAM.MSG.GET.KV_secret", user.js.get_msg("KV_secret", 1))
        await user.cannot(
            "$JS.API.STREAM.DELETE.KV_config", user.js.delete_key_value("config")
        )
        assert (await config.get("colour")).value == b"blue"
        await chief.js.delete_key_value("config")

    # With so much the server asks now and then how far the client is, and waits for the answer.
    config = await chief.js.create_key_value(KeyValueConfig(bucket="config", direct=True))
    for start in range(0, KEYS, 1000):
        writes = [
            chief.js.publish(f"$KV.config.key.{it}", VALUE, timeout=SOON)
            for it in range(start, start + 1000)
        ]
        await asyncio.gather(*writes)
    bucket = await user.js.key_value("config")
    watcher = await bucket.watchall()
    seen = 0
    while await watcher.updates(SOON):
        seen += 1
    assert seen == KEYS, f"watch: {seen} of {KEYS} keys"
    await watcher.stop()
    assert len(await asyncio.wait_for(bucket.keys(), 4 * SOON)) == KEYS
    await chief.js.delete_key_value("config")
    await chief.js.delete_key_value("secret")


async def config_writer(user, chief):
    config = await chief.js.create_key_value(KeyValueConfig(bucket="config", direct=True))
    bucket = await user.js.key_value("config")
    await bucket.create("colour", b"red")
    revision = await bucket.put("colour", b"green")
    await bucket.update("colour", b"blue", revision)
    assert (await config.get("colour")).value == b"blue"
    try:
        await bucket.update("colour", b"black", revision)
        raise AssertionError("it takes no update of what has changed")
    except nats.js.errors.KeyWrongLastSequenceError:
        pass
    await user.cannot("$JS.API.DIRECT.GET.KV_config.$KV.config.colour", bucket.get("colour"))
    await user.cannot("$JS.API.CONSUMER.CREATE.KV_config", bucket.watchall())
    await bucket.delete("colour")
    await user.cannot(
        "$JS.API.DIRECT.GET.KV_config.$KV.config.colour", bucket.create("colour", b"new")
    )
    await bucket.put("colour", b"new")
    await bucket.purge("colour")
    try:
        await config.get("colour")
        raise AssertionError("it is gone")
    except nats.js.errors.KeyNotFoundError:
        pass
    await user.cannot("$JS.API.STREAM.DELETE.KV_config", user.js.delete_key_value("config"))
    await chief.js.delete_key_value("config")


class Mqtt:
    """A connection by MQTT, and what came by it."""

    def __init__(self, name, clean=True):
        self.answers, self.messages = queue.Queue(), queue.Queue()
        self.client = MqttClient(
            CallbackAPIVersion.VERSION2, client_id=f"client-of-{name}", clean_session=clean
        )
        self.client.username_pw_set(name, PASSWORD)
        self.client.on_connect = lambda _c, _u, _f, reason, _p: self.answers.put(reason.value)
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self.answers.put(
            [it.value for it in codes]
        )
        self.client.on_message = lambda _c, _u, message: self.messages.put(message)
        self.client.connect(TASK["mqtt"]["host"], TASK["mqtt"]["port"])
        self.client.loop_start()
        assert self.answers.get(timeout=SOON) == 0, f"{name} is let in"

    def subscribe(self, topic, qos):
        """The quality that is granted. None: refused."""
        self.client.subscribe(topic, qos)
        [granted] = self.answers.get(timeout=SOON)
        return None if granted >= 0x80 else granted

    def publish(self, topic, payload, qos):
        self.client.publish(topic, payload, qos).wait_for_publish(SOON)

    def message(self):
        message = self.messages.get(timeout=SOON)
        return message.topic, message.payload, message.qos

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


async def mqtt_device(user, chief, name="meter-1", qos=2 if VERSION >= (2, 12) else 0):
    """Up to which quality of service it may subscribe."""
    boss = await asyncio.to_thread(Mqtt, CHIEF)
    witness = await chief.nats.subscribe("devices.>")
    await chief.is_there()
    for it in [0, 1, 2]:
        meter = await asyncio.to_thread(Mqtt, name)
        # It is acknowledged, and nobody hears it.
        await asyncio.to_thread(meter.publish, "devices/stranger/power", b"8", it)
        await asyncio.to_thread(meter.publish, f"devices/{name}/power", b"7", it)
        heard = await witness.next_msg(SOON)
        assert (heard.subject, heard.data) == (f"devices.{name}.power", b"7")

        granted = await asyncio.to_thread(meter.subscribe, f"commands/{name}/#", it)
        assert granted == (it if it <= qos else None), f"QoS {it}: {granted}"
        for topic in [f"commands/{name}/reboot", f"commands/{name}"] if it <= qos else []:
            await asyncio.to_thread(boss.publish, topic, b"now", it)
            came = await asyncio.to_thread(meter.message)
            assert came == (topic, b"now", it), came
        for topic in ["commands/#", "commands/stranger/#", "#", "$MQTT/sub/#", "$MQTT/#"]:
            granted = await asyncio.to_thread(meter.subscribe, topic, it)
            assert granted is None, f"{topic} with QoS {it}: {granted}"
        await asyncio.to_thread(meter.close)

    if qos > 0:
        # What came while it was away waits for it.
        meter = await asyncio.to_thread(Mqtt, name, clean=False)
        await asyncio.to_thread(meter.subscribe, f"commands/{name}/#", 1)
        await asyncio.to_thread(meter.close)
        await asyncio.to_thread(boss.publish, f"commands/{name}/wake", b"up", 1)
        meter = await asyncio.to_thread(Mqtt, name, clean=False)
        came = await asyncio.to_thread(meter.message)
        assert came == (f"commands/{name}/wake", b"up", 1), came
        await asyncio.to_thread(meter.close)
    await asyncio.to_thread(boss.close)
    await witness.unsubscribe()


async def mqtt_device_before(user, chief):
    await mqtt_device(user, chief, "meter-2", 2)


# What is more than questions.
TRIED = {
    "asker": asker,
    "answerer": answerer,
    "stream-publisher": stream_publisher,
    "stream-worker": stream_worker,
    "config-reader": config_reader,
    "config-writer": config_writer,
    "mqtt-device": mqtt_device,
    "mqtt-device-before-2.12": mqtt_device_before,
}


async def main():
    tried = dict(TRIED)
    chief = await connect(CHIEF)
    for recipe in TASK["recipes"]:
        role, name = recipe["role"], recipe["user"]
        more = tried.pop(role, None)
        needs_more = any(it["subject"].startswith("$") for it in recipe["questions"])
        assert more or not needs_more, f"{role}: nothing is tried of it"
        user = None
        if "STANDARD" in recipe["users"].get("allowed_connection_types", ["STANDARD"]):
            user = await connect(name)
            for question in recipe["questions"]:
                await ask(user, chief, question)
        else:
            try:
                await connect(name)
                raise AssertionError(f"{name} is let in by NATS")
            except nats.errors.Error as error:
                assert "authorization violation" in str(error).lower(), error
        try:
            if more:
                await more(user, chief)
        except Exception as error:
            refused = user.refusals if user else []
            raise AssertionError(f"{role}: {error!r}; refused: {refused}") from error
        if user:
            await user.nats.close()
        print(role, flush=True)
    assert not tried, f"no recipe: {list(tried)}"
    await chief.nats.close()


# Nothing waits for ever.
signal.alarm(360)
asyncio.run(main())
