#!/usr/bin/env node
// A network of pods in JavaScript: a bridge, and a veth pair a pod, by iproute2. STATE is a folder for what was given away; the range
// is a /24.
//
//   quaymaster agent … --network /opt/network-javascript/network.js
//   quaymaster backend verify --kind network ./network.js
'use strict';
const { execFile } = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const { promisify } = require('util');
const grpc = require('@grpc/grpc-js');
const { serve, load, log } = require('./serve');

const [state = '/var/lib/network-javascript', range = '10.214.0'] = process.argv.slice(2);
const bridge = 'qmjs0';
const run = promisify(execFile);
const ip = (...args) => run('ip', args);
const inside = (netns, ...args) => run('nsenter', [`--net=${netns}`, 'ip', ...args]);

function fail(code, message) {
  return Object.assign(new Error(message), { code, details: message });
}

// The file is the memory of this process, which may be killed at any time: an attachment is in it before it is made.
const file = path.join(state, 'attachments.json');
fs.mkdirSync(state, { recursive: true, mode: 0o700 });
let attached = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file)) : {};
function save() {
  fs.writeFileSync(file + '.new', JSON.stringify(attached), { mode: 0o600 });
  fs.renameSync(file + '.new', file);
}

function key(a) {
  if (!a || !/^[\w.-]+$/.test(a.container_id) || !/^[\w.-]+$/.test(a.interface)) {
    throw fail(grpc.status.INVALID_ARGUMENT, 'an attachment needs a container ID and an interface');
  }
  return `${a.container_id}@${a.interface}`;
}

async function ensureBridge() {
  await ip('link', 'show', 'dev', bridge).catch(async () => {
    await ip('link', 'add', bridge, 'type', 'bridge');
    await ip('address', 'add', `${range}.1/24`, 'dev', bridge);
  });
  await ip('link', 'set', bridge, 'up');
}

async function release(k) {
  const a = attached[k];
  if (!a) return;
  await ip('link', 'del', a.host).catch((err) => log('debug', 'the pair is gone already', { host: a.host, err: err.message }));
  delete attached[k];
  save();
}

async function add(a) {
  const k = key(a);
  if (!a.netns) throw fail(grpc.status.INVALID_ARGUMENT, 'the network namespace is not said');
  const have = attached[k];
  if (have && have.done && have.netns === a.netns) return answer(have);
  await release(k); // of an earlier attempt
  const taken = new Set(Object.values(attached).map((o) => o.host_number));
  let number = 2;
  while (taken.has(number)) number++;
  if (number > 254) throw fail(grpc.status.RESOURCE_EXHAUSTED, `every address of ${range}.0/24 is taken`);
  const host = 'qmj' + crypto.createHash('sha256').update(k).digest('hex').slice(0, 10);
  attached[k] = { host, host_number: number, netns: a.netns, interface: a.interface, address: `${range}.${number}/24` };
  save();
  try {
    await ensureBridge();
    await ip('link', 'add', host, 'type', 'veth', 'peer', 'name', a.interface, 'netns', a.netns);
    await ip('link', 'set', host, 'master', bridge, 'up');
    await inside(a.netns, 'address', 'add', attached[k].address, 'dev', a.interface);
    await inside(a.netns, 'link', 'set', a.interface, 'up');
    await inside(a.netns, 'route', 'add', 'default', 'via', `${range}.1`);
  } catch (err) {
    await release(k);
    throw fail(grpc.status.INTERNAL, `attach pod ${a.pod_namespace}/${a.pod_name}: ${err.message}`);
  }
  attached[k].done = true;
  save();
  log('info', 'attached', { pod: `${a.pod_namespace}/${a.pod_name}`, address: attached[k].address });
  return answer(attached[k]);
}

const answer = (a) => ({ addresses: [{ address: a.address, gateway: `${range}.1` }] });

async function check(a) {
  const have = attached[key(a)];
  if (!have || !have.done) throw fail(grpc.status.NOT_FOUND, 'nothing is attached');
  const { stdout } = await inside(have.netns, '-o', 'address', 'show', 'dev', have.interface).catch(() => ({ stdout: '' }));
  if (!stdout.includes(` ${have.address} `)) throw fail(grpc.status.FAILED_PRECONDITION, `${have.interface} has not the address ${have.address}`);
  return {};
}

async function collect(valid) {
  const keep = new Set(valid.map(key));
  const collected = Object.keys(attached).filter((k) => !keep.has(k));
  for (const k of collected) await release(k);
  return { collected };
}

async function status() {
  try {
    await ip('-V');
    return { ready: true, network: `bridge ${bridge} for ${range}.0/24, in JavaScript` };
  } catch (err) {
    return { ready: false, reason: 'NoIproute2', message: err.message };
  }
}

// One call after another: simple, and fast enough for a node.
let last = Promise.resolve();
const one = (fn) => (call, done) => {
  last = last.then(() => fn(call.request)).then((r) => done(null, r), (err) => done(err.code === undefined || typeof err.code === 'string' ? fail(grpc.status.INTERNAL, err.message) : err));
};

const proto = path.relative(__dirname, process.env.NETWORK_PROTO || path.join(__dirname, '../../sdk/backend/network/network.proto'));
serve('network-v1', load(proto).quaymaster.network.v1.Network.service, {
  Status: one(status),
  Add: one((r) => add(r.attachment)),
  Del: one(async (r) => {
    await release(key(r.attachment));
    return {};
  }),
  Check: one((r) => check(r.attachment)),
  GC: one((r) => collect(r.valid)),
});
