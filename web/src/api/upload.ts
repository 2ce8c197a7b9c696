/** Sends a file as the body of a POST and tells how far it is, which `fetch` cannot. */
import { accessToken } from '@/session/tokens'
import { fetchAs, renew } from './client'
import { Problem, problemOf, unreachable } from './problem'

export interface Upload<T> {
  done: Promise<T>
  abort: () => void
}

interface Options {
  /** Bytes that have left, of how many. */
  onProgress: (sent: number, total: number) => void
  /** The same key on each attempt: a copy of a file that arrived becomes the same job. */
  key: string
  contentType: string
}

export function upload<T>(url: string, file: Blob, options: Options): Upload<T> {
  let current: XMLHttpRequest | null = null
  const attempt = () =>
    new Promise<Response>((resolve, reject) => {
      const request = new XMLHttpRequest()
      current = request
      request.open('POST', url)
      request.setRequestHeader('content-type', options.contentType)
      request.setRequestHeader('idempotency-key', options.key)
      request.setRequestHeader('authorization', `Bearer ${accessToken()}`)
      request.responseType = 'text'
      request.upload.onprogress = (event) => options.onProgress(event.loaded, event.total || file.size)
      request.onerror = () => reject(unreachable())
      request.onabort = () => reject(new Problem({ code: 'aborted' }, 0))
      request.onload = () => {
        const headers = new Headers()
        for (const name of ['retry-after', 'x-request-id', 'location']) {
          const value = request.getResponseHeader(name)
          if (value !== null) headers.set(name, value)
        }
        resolve(new Response(request.responseText, { status: request.status, headers }))
      }
      request.send(file)
    })

  const run = async (): Promise<T> => {
    // A token that runs out half-way through a long upload would waste it: a cheap request renews it first.
    await fetchAs(new Request(new URL('/v1/me', location.origin)))
    let response = await attempt()
    if (response.status === 401 && (await renew())) response = await attempt()
    if (!response.ok) throw await problemOf(response)
    return (await response.json()) as T
  }
  return { done: run(), abort: () => current?.abort() }
}
