import * as fs from "node:fs"
import { slowness } from "./database.ts"

/**
 * `node:fs/promises` without threads: every call acts at once, so that parallel ones end in the order in which they began; on
 * a slow disk it waits by the simulation's clock.
 * What nobody uses yet may be missing: that shows when the modules are linked.
 */
type Sync = (...parameters: never[]) => unknown

function atOnce<Act extends Sync>(act: Act): (...parameters: Parameters<Act>) => Promise<ReturnType<Act>> {
  return async (...parameters) => {
    const slow = slowness(parameters[0])
    if (slow !== null) await slow
    return act(...parameters) as ReturnType<Act>
  }
}

export const access = atOnce(fs.accessSync)
export const appendFile = atOnce(fs.appendFileSync)
export const chmod = atOnce(fs.chmodSync)
export const chown = atOnce(fs.chownSync)
export const copyFile = atOnce(fs.copyFileSync)
export const link = atOnce(fs.linkSync)
export const lstat = atOnce(fs.lstatSync as (path: string) => fs.Stats)
export const mkdir = atOnce(fs.mkdirSync as (path: string, options?: object) => string | undefined)
export const mkdtemp = atOnce(fs.mkdtempSync as (prefix: string) => string)
export const readlink = atOnce(fs.readlinkSync as (path: string) => string)
export const realpath = atOnce(fs.realpathSync as (path: string) => string)
export const readdir = atOnce(fs.readdirSync as (path: string, options?: object) => string[])
export const readFile = atOnce(fs.readFileSync as (path: string, options?: unknown) => Buffer | string)
export const rename = atOnce(fs.renameSync)
export const rm = atOnce(fs.rmSync)
export const rmdir = atOnce(fs.rmdirSync as (path: string) => void)
export const stat = atOnce(fs.statSync as (path: string) => fs.Stats)
export const statfs = atOnce(fs.statfsSync as (path: string) => fs.StatsFs)
export const symlink = atOnce(fs.symlinkSync)
export const truncate = atOnce(fs.truncateSync)
export const unlink = atOnce(fs.unlinkSync)
export const utimes = atOnce(fs.utimesSync)
export const writeFile = atOnce(fs.writeFileSync)

export async function* opendir(path: string): AsyncGenerator<fs.Dirent> {
  yield* fs.readdirSync(path, { withFileTypes: true })
}

export async function open(path: string, flags?: string, mode?: number): Promise<FileHandle> {
  const slow = slowness(path)
  if (slow !== null) await slow
  return new FileHandle(fs.openSync(path, flags ?? "r", mode))
}

export class FileHandle {
  readonly fd: number
  constructor(fd: number) {
    this.fd = fd
  }
  async read(buffer: Uint8Array, offset: number, length: number, position: number | null) {
    return { bytesRead: fs.readSync(this.fd, buffer, offset, length, position), buffer }
  }
  async write(buffer: Uint8Array, offset?: number, length?: number, position?: number | null) {
    return { bytesWritten: fs.writeSync(this.fd, buffer, offset, length, position), buffer }
  }
  async readFile() {
    return fs.readFileSync(this.fd)
  }
  async stat(options?: fs.StatOptions) {
    return fs.fstatSync(this.fd, options)
  }
  async truncate(length: number) {
    fs.ftruncateSync(this.fd, length)
  }
  async sync() {}
  async datasync() {}
  async close() {
    fs.closeSync(this.fd)
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
