// How a process in JavaScript serves an agent: the handshake, the certificates, the socket. None of it is about networks.
'use strict';
const { execFileSync } = require('child_process');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const load = (file) => grpc.loadPackageDefinition(loader.loadSync(path.join(__dirname, file), { keepCase: true, longs: Number, defaults: true }));

// certificate makes a key and a certificate that lives as long as the process.
function certificate() {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'backend-'));
  try {
    const [key, cert] = ['key.pem', 'cert.pem'].map((f) => path.join(dir, f));
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '3650',
      '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', cert], { stdio: 'pipe' });
    return { key: fs.readFileSync(key), cert: fs.readFileSync(cert) };
  } finally {
    fs.rmSync(dir, { recursive: true });
  }
}

// serve serves a gRPC service as a backend of a kind ("network-v1" or "cri-v1") to the agent that started this process.
function serve(kind, service, handlers) {
  if (process.env.QUAYMASTER_BACKEND !== kind) {
    console.error(`this is a ${kind} backend: quaymaster starts it, people do not`);
    process.exit(1);
  }
  const server = new grpc.Server();
  server.addService(service, handlers);
  const serving = { status: 'SERVING' };
  server.addService(load('health.proto').grpc.health.v1.Health.service, {
    Check: (call, done) => done(null, serving),
    Watch: (call) => call.write(serving), // and stays open
  });
  server.addService(load('plugin.proto').plugin.GRPCController.service, {
    Shutdown: (call, done) => {
      done(null, {});
      setImmediate(() => process.exit(0));
    },
  });

  const own = certificate();
  // Only the agent that started this process may call: its certificate is the one in the environment.
  const credentials = grpc.ServerCredentials.createSsl(Buffer.from(process.env.PLUGIN_CLIENT_CERT), [{ private_key: own.key, cert_chain: own.cert }], true);
  const socket = path.join(process.env.PLUGIN_UNIX_SOCKET_DIR || os.tmpdir(), `backend${process.pid}`);
  server.bindAsync(`unix:${socket}`, credentials, (err) => {
    if (err) {
      console.error(err.message);
      process.exit(1);
    }
    const der = own.cert.toString().replace(/-----[^-]+-----|\s/g, '').replace(/=+$/, '');
    process.stdout.write(`1|1|unix|${socket}|grpc|${der}\n`);
  });
  // Descriptor 3 is a pipe that ends with the agent.
  new net.Socket({ fd: 3, readable: true, writable: false }).on('error', () => {}).on('close', () => process.exit(0)).resume();
}

// log writes a line that arrives in the agent's log with its level and attributes.
function log(level, message, attributes) {
  process.stderr.write(JSON.stringify({ '@level': level, '@message': message, '@timestamp': new Date().toISOString(), ...attributes }) + '\n');
}

module.exports = { serve, load, log };
