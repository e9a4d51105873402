// Makes a fresh clone ready to run: installs what the lockfile names (not by `npm ci`, which refuses lockfiles without
// the optional packages of other platforms) and compiles, each only when it is out of date.
// Runs before `npm start` and `npm test`, so it uses nothing but Node itself.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

const changed = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
const newest = (folder) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((latest, entry) => Math.max(latest, changed(join(entry.parentPath ?? entry.path, entry.name))), 0);

function run(command, args) {
  const { status } = spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0) process.exit(status ?? 1);
}

if (changed('node_modules/.package-lock.json') < changed('package-lock.json'))
  run('npm', ['install', '--no-save', '--no-fund', '--no-audit']);
if (changed('dist/cli.js') < Math.max(newest('src'), changed('tsconfig.build.json'))) {
  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']);
}
