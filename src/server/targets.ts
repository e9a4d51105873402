/**
 * From what the configuration says of a database to a connection there: as whom, with which TLS, and, for the control user, the
 * connection itself. Made by app; asked by server/pools, server/clusters and client/secrets.
 *
 * The one idea: files are named relative to the configuration, and read each time: a changed password takes effect at once.
 */
import { readFile } from 'node:fs/promises';
import type { DatabaseConfig, HostConfig } from '../config/schema.ts';
import { messageOf } from '../util/errors.ts';
import { type ControlConnection, openControl } from './control.ts';
import { ServerLoginError, type ServerTarget } from './login.ts';

export class Targets {
  readonly #path: (file: string) => string;

  /** `path`: where a file of the configuration is. */
  constructor(path: (file: string) => string) {
    this.#path = path;
  }

  /** What pools, and we ourselves, log in to: `database` as `user`, on one of its hosts. */
  of(database: string, user: string, config: DatabaseConfig, host: HostConfig): ServerTarget {
    const { tls } = config;
    const files = (['ca', 'crl', 'cert', 'key'] as const).flatMap((name) =>
      tls[name] === undefined ? [] : [[name, this.#path(tls[name])]],
    );
    return {
      host,
      tls: { ...tls, ...Object.fromEntries(files) },
      database: config.dbname ?? database,
      user,
      parameters: [],
      connectQuery: config.connectQuery,
    };
  }

  /** The password that is in a file. */
  async passwordIn(file: string): Promise<string> {
    try {
      return (await readFile(this.#path(file), 'utf8')).replace(/\r?\n$/, '');
    } catch (thrown) {
      throw new ServerLoginError(`the password file cannot be read: ${messageOf(thrown)}`);
    }
  }

  /** What the control user of a database logs in with; undefined: nothing. */
  async controlPassword({ control }: DatabaseConfig): Promise<string | undefined> {
    const { passwordFile } = control!;
    return passwordFile === undefined ? undefined : this.passwordIn(passwordFile);
  }

  /** A connection of the control user to one host. */
  async openControl(config: DatabaseConfig, database: string, at: HostConfig): Promise<ControlConnection> {
    const password = await this.controlPassword(config);
    return openControl(this.of(database, config.control!.user, config, at), password);
  }
}
