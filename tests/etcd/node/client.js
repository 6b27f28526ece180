// Puts a server through the etcd3 client of npm.
//
//     node client.js HOST:PORT
//
// Prints what went wrong, and exits with 1 if anything did.
'use strict';
const assert = require('node:assert/strict');
const path = require('node:path');
const { createRequire } = require('node:module');

// Where ../install put it.
const installed = createRequire(path.join(process.env.ETCD_NODE_CLIENTS, 'package.json'));
const { Etcd3, EtcdLockFailedError } = installed('etcd3');

const PATIENCE_MS = 60_000;

const checks = {
  async keys(client) {
    await client.put('node/a').value('1');
    await client.put('node/b').value(Buffer.from([0, 255]));
    assert.equal(await client.get('node/a').string(), '1');
    assert.deepEqual(await client.get('node/b').buffer(), Buffer.from([0, 255]));
    assert.equal(await client.get('node/absent'), null);
    const keys = await client.getAll().prefix('node/').sort('Key', 'Descend').keys();
    assert.deepEqual(keys, ['node/b', 'node/a']);
    const deleted = await client.delete().prefix('node/');
    assert.equal(Number(deleted.deleted), 2);
  },

  async transactions(client) {
    const put = () => client.if('node-txn', 'Create', '==', 0).then(client.put('node-txn').value('1'))
      .else(client.get('node-txn')).commit();
    assert.equal((await put()).succeeded, true);
    const second = await put();
    assert.equal(second.succeeded, false);
    assert.equal(second.responses[0].response_range.kvs[0].value.toString(), '1');
  },

  async stm(client) {
    await client.put('node-stm').value('0');
    const add = () => client.stm({ retries: 50 }).transact(async (tx) => {
      const value = Number(await tx.get('node-stm').string());
      await tx.put('node-stm').value(value + 1);
    });
    await Promise.all(Array.from({ length: 8 }, add));
    assert.equal(await client.get('node-stm').string(), '8');
  },

  async leases(client) {
    const lease = client.lease(600);
    await lease.put('node-lease').value('1');
    await lease.keepaliveOnce();
    await lease.revoke();
    assert.equal(await client.get('node-lease'), null);
  },

  async locks(client) {
    const held = await client.lock('node-lock').acquire();
    await assert.rejects(client.lock('node-lock').acquire(), EtcdLockFailedError);
    await held.release();
    await (await client.lock('node-lock').acquire()).release();
  },

  async elections(client) {
    const election = client.election('node-election', 60);
    const campaign = election.campaign('one');
    await new Promise((resolve, reject) => campaign.once('elected', resolve).once('error', reject));
    assert.equal(await election.leader(), 'one');
    const observer = await election.observe();
    assert.equal(observer.leader(), 'one');
    const changed = new Promise((resolve) => observer.once('change', resolve));
    await campaign.resign();
    assert.equal(await changed, undefined);
    await observer.cancel();
  },

  async watches(client) {
    const watcher = await client.watch().prefix('node-watch/').withPreviousKV().create();
    const seen = [];
    const two = new Promise((resolve) => {
      const note = (kind) => (kv) => {
        seen.push(`${kind} ${kv.key}`);
        if (seen.length === 2) resolve();
      };
      watcher.on('put', note('put')).on('delete', note('delete'));
    });
    await client.put('node-watch/a').value('1');
    await client.delete().key('node-watch/a');
    await two;
    assert.deepEqual(seen, ['put node-watch/a', 'delete node-watch/a']);
    await watcher.cancel();
  },

  async namespaces(client) {
    const space = client.namespace('node-space/');
    await space.put('a').value('1');
    assert.deepEqual(await space.getAll().strings(), { a: '1' });
    assert.equal(await client.get('node-space/a').string(), '1');
  },

  async cluster(client) {
    const status = await client.maintenance.status();
    assert.match(status.version, /^3\./);
    const members = await client.cluster.memberList({ linearizable: true });
    assert.equal(members.members.length, 1);
    await assert.rejects(client.auth.authEnable(), /root user does not exist/);
  },
};

async function main() {
  const client = new Etcd3({ hosts: `http://${process.argv[2]}` });
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no end within ${PATIENCE_MS} ms`)), PATIENCE_MS);
    });
    try {
      await Promise.race([check(client), late]);
      console.log(`ok     ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${name}: ${error.stack}`);
    }
    clearTimeout(timer);
  }
  client.close();
  if (failed) console.log(`${failed} failed`);
  process.exit(failed ? 1 : 0);
}

main();
