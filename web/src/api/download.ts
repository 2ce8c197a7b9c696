/** Saves what an address answers as a file: a link could not carry the session along. */
import { fetchAs } from './client'
import { problemOf } from './problem'

export async function download(path: string, name: string): Promise<void> {
  const response = await fetchAs(new Request(new URL(path, location.origin)))
  if (!response.ok) throw await problemOf(response)
  const said = /filename="?([^";]+)"?/.exec(response.headers.get('content-disposition') ?? '')?.[1]
  const link = document.createElement('a')
  link.href = URL.createObjectURL(await response.blob())
  link.download = said ?? name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}
