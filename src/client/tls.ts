/**
 * TLS towards clients, as `listen.tls` says. Read by app at the start and at a reload (sessions keep what they began with), used by
 * client/incoming for each handshake.
 *
 * The one idea: whoever asks for TLS by SSLRequest and whoever begins with its first byte (sslnegotiation=direct) get the same;
 * the second must offer the protocol `postgresql` (ALPN), or else a browser could be made to talk to us.
 */
import { constants } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type net from 'node:net';
import tls from 'node:tls';
import type { ListenConfig } from '../config/schema.ts';

export interface ClientTls {
  context: tls.SecureContext;
  /** Certificates for other names than that of `context` (SNI). */
  names: ReadonlyMap<string, tls.SecureContext>;
  /** Clients are asked for a certificate. */
  isCertificateAsked: boolean;
}

/** ALPN's one protocol, with its length ahead of it. */
const PROTOCOLS = Buffer.from('\x0apostgresql');
export const PROTOCOL = 'postgresql';

/** Null: there is no TLS. Throws when a file cannot be read or is none of those. `path`: where a file of the configuration is. */
export function readClientTls(
  { mode, cert, key, ca, crl, minVersion, ciphers, names }: ListenConfig['tls'],
  path: (file: string) => string,
): ClientTls | null {
  if (mode === 'disable') return null;
  const read = (file: string | undefined) => (file === undefined ? undefined : readFileSync(path(file)));
  const contextOf = (own: { cert: string; key: string }) =>
    tls.createSecureContext({
      cert: read(own.cert),
      key: read(own.key),
      ca: read(ca),
      crl: read(crl),
      minVersion,
      ciphers,
      // Without one, sessions are not resumed where certificates are asked for.
      sessionIdContext: 'pgweir',
      secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
    });
  return {
    context: contextOf({ cert: cert!, key: key! }),
    names: new Map(Object.entries(names).map(([name, own]) => [name.toLowerCase(), contextOf(own)])),
    isCertificateAsked: ca !== undefined,
  };
}

/** The server's side of TLS on `socket`, whose handshake begins. What the client's certificate is worth is found out behind it. */
export function startTls(socket: net.Socket, { context, names, isCertificateAsked }: ClientTls): tls.TLSSocket {
  const options = {
    isServer: true,
    secureContext: context,
    requestCert: isCertificateAsked,
    rejectUnauthorized: false,
    ALPNProtocols: PROTOCOLS,
    ...(names.size === 0
      ? {}
      : {
          SNICallback: (name: string, done: (error: Error | null, context?: tls.SecureContext) => void) =>
            done(null, names.get(name.toLowerCase()) ?? context),
        }),
  };
  return new tls.TLSSocket(socket, options as unknown as tls.TLSSocketOptions);
}

/** What a client has shown of itself: no certificate, a good one, or why it is none. */
export type Certificate = { kind: 'none' } | { kind: 'bad'; why: string } | { kind: 'good'; names: CertificateNames };

interface CertificateNames {
  /** The common name of its subject. */
  commonName: string;
  /** The whole subject as RFC 2253 writes it, as `clientname=DN` of Postgres. */
  subject: string;
}

export function certificateOf(socket: tls.TLSSocket): Certificate {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return { kind: 'none' };
  // Only tls.Server judges certificates by itself; the handle knows what the handshake found.
  const { ssl } = socket as unknown as { ssl: { verifyError(): Error | null | undefined } };
  const error = ssl.verifyError();
  if (error) return { kind: 'bad', why: error.message };
  // The first of several, as in Postgres.
  const [commonName = ''] = [socket.getPeerCertificate().subject?.CN ?? ''].flat();
  return { kind: 'good', names: { commonName, subject: certificate.subject.split('\n').toReversed().join(',') } };
}
