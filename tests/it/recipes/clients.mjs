// Each recipe of the cookbook, tried with nats.js.
//
// The environment variable RECIPES says which there are. The name of each that holds is printed.

import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { connect as connectNats, wsconnect } from "@nats-io/transport-node";

const task = JSON.parse(process.env.RECIPES);
// Long enough for anything that is going to happen on a busy machine.
const soon = 30_000;
// Enough for the server to wait for the client now and then.
const keys = 20_000, value = new Uint8Array(4096).fill(120);

const sleep = () => new Promise((done) => setTimeout(done, 5));

async function until(what, condition) {
  const end = Date.now() + soon;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`never so: ${what}`);
    await sleep();
  }
}

function assert(condition, what) {
  if (!condition) throw new Error(`not so: ${what}`);
}

/** A connection, and what the server has refused to it. */
class User {
  static async connect(name, { prefix = `_INBOX_${name}`, websocket = false } = {}) {
    const user = new User();
    const options = {
      servers: websocket ? task.websocket : task.nats,
      user: name,
      pass: task.password,
      inboxPrefix: prefix,
      reconnect: false,
      timeout: soon,
    };
    user.nats = await (websocket ? wsconnect : connectNats)(options);
    user.refusals = [];
    (async () => {
      for await (const status of user.nats.status()) {
        if (status.type === "error" && status.error.subject) {
          user.refusals.push(status.error.subject);
        }
      }
    })();
    user.js = jetstream(user.nats, { timeout: soon });
    user.buckets = new Kvm(user.js);
    return user;
  }

  /** Without a look at the API first. */
  manager() {
    return jetstreamManager(this.nats, { timeout: soon, checkAPI: false });
  }

  /** It fails, since the server refuses this subject to it. */
  async cannot(subject, attempt) {
    this.refusals.length = 0;
    let went = false;
    attempt().then(() => went = true).catch(() => {});
    await until(`${subject} is refused`, () => this.refusals.includes(subject) || went);
    assert(!went, `${subject} is refused`);
  }
}

/** The first message. */
async function next(subscription) {
  for await (const message of subscription) return message;
}

/** A question of the cookbook, asked of the server. */
async function ask(user, chief, { verb, subject, queue, allowed }) {
  user.refusals.length = 0;
  if (verb === "pub") {
    const witness = chief.nats.subscribe(subject, { max: 1 });
    await chief.nats.flush();
    user.nats.publish(subject, "tried");
    if (allowed) assert((await next(witness)).string() === "tried", subject);
    else await until(`${subject} is refused`, () => user.refusals.includes(subject));
    witness.unsubscribe();
  } else {
    const heard = user.nats.subscribe(subject, { queue: queue ?? undefined, max: 1 });
    if (allowed) {
      await user.nats.flush();
      chief.nats.publish(subject.replace("*", "sample").replace(">", "sample"), "tried");
      assert((await next(heard)).string() === "tried", subject);
    } else {
      await until(`${subject} is refused`, () => user.refusals.includes(subject));
    }
    heard.unsubscribe();
  }
}

async function asker(user, chief) {
  const served = chief.nats.subscribe("orders.create", { callback: (_, it) => it.respond("done") });
  await chief.nats.flush();
  const answer = await user.nats.request("orders.create", "", { timeout: soon });
  assert(answer.string() === "done", "it is answered");
  // Without its prefix it waits for ever.
  const without = await User.connect("shop", { prefix: "_INBOX" });
  without.nats.request("orders.create", "", { timeout: soon }).catch(() => {});
  await until("the inbox is refused", () => without.refusals.some((it) => it.startsWith("_INBOX.")));
  await without.nats.close();
  served.unsubscribe();
}

async function answerer(user, chief) {
  user.refusals.length = 0;
  user.nats.subscribe("orders.create", {
    callback: (_, it) => {
      it.respond("one");
      it.respond("two");
    },
  });
  await user.nats.flush();
  const answer = await chief.nats.request("orders.create", "", { timeout: soon });
  assert(answer.string() === "one", "it is answered");
  await until("a second answer is refused", () => user.refusals.length === 1);
}

/** The stream `ORDERS`, and the consumers `worker` and `other`. */
async function orders(chief) {
  const manager = await chief.manager();
  await manager.streams.add({ name: "ORDERS", subjects: ["orders.>"] });
  for (const name of ["worker", "other"]) {
    await manager.consumers.add("ORDERS", { durable_name: name, ack_policy: "explicit" });
  }
  return manager;
}

async function streamPublisher(user, chief) {
  const manager = await orders(chief);
  assert((await user.js.publish("orders.new", "one")).seq === 1, "it is stored");
  const theirs = await user.manager();
  await user.cannot("$JS.API.STREAM.INFO.ORDERS", () => theirs.streams.info("ORDERS"));
  await user.cannot("$JS.API.STREAM.PURGE.ORDERS", () => theirs.streams.purge("ORDERS"));
  await user.cannot("$JS.API.STREAM.DELETE.ORDERS", () => theirs.streams.delete("ORDERS"));
  assert((await manager.streams.info("ORDERS")).state.messages === 1, "it is still there");
  await manager.streams.delete("ORDERS");
}

async function streamWorker(user, chief) {
  const manager = await orders(chief);
  await chief.js.publish("orders.new", "one");
  const worker = await user.js.consumers.get("ORDERS", "worker");
  const message = await worker.next({ expires: soon });
  assert(message.string() === "one", "it is delivered");
  assert(await message.ackAck(), "it is acknowledged");
  await user.cannot("$JS.API.CONSUMER.INFO.ORDERS.other", () => user.js.consumers.get("ORDERS", "other"));
  const theirs = await user.manager();
  await user.cannot(
    "$JS.API.CONSUMER.CREATE.ORDERS.mine",
    () => theirs.consumers.add("ORDERS", { name: "mine", ack_policy: "explicit" }),
  );
  await user.cannot("$JS.API.STREAM.MSG.GET.ORDERS", () => theirs.streams.getMessage("ORDERS", { seq: 1 }));
  await user.cannot("orders.new", () => user.js.publish("orders.new", "two", { timeout: soon }));
  await user.cannot(
    "$JS.API.CONSUMER.DELETE.ORDERS.worker",
    () => theirs.consumers.delete("ORDERS", "worker"),
  );
  await manager.streams.delete("ORDERS");
}

async function all(iterator) {
  const found = [];
  for await (const it of iterator) found.push(it);
  return found;
}

async function configReader(user, chief) {
  const secret = await chief.buckets.create("secret");
  await secret.put("code", "1234");
  for (const direct of [true, false]) {
    const config = await chief.buckets.create("config", { history: 5, allow_direct: direct });
    await config.put("gone", "soon");
    await config.delete("gone");
    const first = await config.put("colour", "red");
    await config.put("colour", "green");
    // Told that a bucket is one to read directly, it does so; else it asks the stream.
    for (const told of direct ? [{}, { allow_direct: true }] : [{}]) {
      const bucket = await user.buckets.open("config", told);
      assert((await bucket.get("colour")).string() === "green", "get");
      assert((await bucket.get("colour", { revision: first })).string() === "red", "by revision");
      assert((await all(await bucket.keys())).join() === "colour", "keys");
      const history = await all(await bucket.history({ key: "colour" }));
      assert(history[0].string() === "red" && history.at(-1).string() === "green", "history");
      assert((await bucket.status()).values >= 4, "status");
      const seen = [];
      for await (const entry of await bucket.watch({ key: "colour" })) {
        seen.push(entry.string());
        if (seen.length === 1) await config.put("colour", "blue");
        if (entry.string() === "blue") break;
      }
      assert(seen.join() === "green,blue", `watch: ${seen}`);
      await config.put("colour", "green");
      await user.cannot("$KV.config.colour", () => bucket.put("colour", "black"));
      await user.cannot("$KV.config.colour", () => bucket.delete("colour"));
      await user.cannot("$JS.API.STREAM.DELETE.KV_config", () => bucket.destroy());
    }
    const stranger = await user.buckets.open("secret");
    await user.cannot("$JS.API.STREAM.MSG.GET.KV_secret", () => stranger.get("code"));
    await user.cannot("$JS.API.STREAM.INFO.KV_secret", () => stranger.status());
    await config.destroy();
  }

  // With so much the server asks now and then how far the client is, and waits for the answer.
  const config = await chief.buckets.create("config");
  for (let start = 0; start < keys; start += 1000) {
    const writes = Array.from({ length: 1000 }, (_, it) => config.put(`key.${start + it}`, value));
    await Promise.all(writes);
  }
  const bucket = await user.buckets.open("config");
  const seen = new Set();
  for await (const entry of await bucket.watch()) {
    seen.add(entry.key);
    if (seen.size === keys) break;
  }
  // A client that begins again in the middle tells some twice.
  const found = new Set(await all(await bucket.keys())).size;
  assert(found === keys, `${found} of ${keys} keys`);
  await config.destroy();
  await secret.destroy();
}

async function configWriter(user, chief) {
  const config = await chief.buckets.create("config");
  const bucket = await user.buckets.open("config", { allow_direct: true });
  await bucket.create("colour", "red");
  const revision = await bucket.put("colour", "green");
  await bucket.update("colour", "blue", revision);
  assert((await config.get("colour")).string() === "blue", "it is written");
  const late = await bucket.update("colour", "black", revision).catch((error) => error);
  assert(late instanceof Error, "it takes no update of what has changed");
  await user.cannot("$JS.API.DIRECT.GET.KV_config.$KV.config.colour", () => bucket.get("colour"));
  await user.cannot("$JS.API.STREAM.DELETE.KV_config", () => bucket.destroy());
  await bucket.delete("colour");
  await bucket.put("colour", "new");
  await bucket.purge("colour");
  const last = await config.get("colour");
  assert(last.operation === "PURGE", "it is gone");
  await config.destroy();
}

// What is more than questions.
const tried = {
  "asker": asker,
  "answerer": answerer,
  "stream-publisher": streamPublisher,
  "stream-worker": streamWorker,
  "config-reader": configReader,
  "config-writer": configWriter,
};

// Nothing waits for ever.
setTimeout(() => {
  console.error("it takes too long");
  process.exit(1);
}, 360_000).unref();

const chief = await User.connect(task.chief);
for (const { role, user: name, users, questions } of task.recipes) {
  const more = tried[role];
  delete tried[role];
  const types = users.allowed_connection_types ?? ["STANDARD", "WEBSOCKET"];
  if (!types.includes("STANDARD")) {
    const refused = await User.connect(name).catch((error) => error);
    assert(refused instanceof Error, `${name} is not let in by NATS`);
  }
  const websocket = !types.includes("STANDARD");
  if (types.includes("STANDARD") || types.includes("WEBSOCKET")) {
    const needsMore = questions.some((it) => it.subject.startsWith("$"));
    assert(more || !needsMore, `${role}: something is tried of it`);
    const user = await User.connect(name, { websocket });
    try {
      for (const question of questions) await ask(user, chief, question);
      if (more) await more(user, chief);
    } catch (error) {
      throw new Error(`${role}: ${error.message}; refused: ${user.refusals}`, { cause: error });
    }
    await user.nats.close();
  }
  console.log(role);
}
assert(Object.keys(tried).length === 0, `there is a recipe for each of ${Object.keys(tried)}`);
await chief.nats.close();
