/** Uploads that are on their way: they go on while one looks at other pages. */
import { defineStore } from 'pinia'
import { markRaw, reactive } from 'vue'
import type { Schemas } from '@/api/client'
import { asProblem, type Problem } from '@/api/problem'
import { randomKey } from '@/api/random'
import { upload } from '@/api/upload'
import { useTray } from '@/jobs/tray'

export type ImportMode = Schemas['ImportMode']

export interface Sending {
  bookId: string
  file: File
  mode: ImportMode
  query: Record<string, string>
  sent: number
  total: number
  jobId: string | null
  problem: Problem | null
  abort: () => void
}

export const useUploads = defineStore('uploads', () => {
  const byBook = reactive(new Map<string, Sending>())

  /** Sends a file; `key` stays the same when a failed attempt is repeated, so that it becomes one job at most. */
  async function start(bookId: string, file: File, mode: ImportMode, query: Record<string, string>, key = randomKey()): Promise<void> {
    byBook.set(bookId, { bookId, file: markRaw(file), mode, query, sent: 0, total: file.size, jobId: null, problem: null, abort: () => {} })
    const sending = byBook.get(bookId)!
    const running = upload<Schemas['Job']>(`/v1/books/${bookId}/codes/import?${new URLSearchParams({ mode, ...query })}`, file, {
      key,
      contentType: 'text/csv',
      onProgress: (sent, total) => {
        sending.sent = sent
        sending.total = total
      },
    })
    sending.abort = running.abort
    try {
      const job = await running.done
      sending.jobId = job.id
      useTray().follow(job.id)
    } catch (error) {
      sending.problem = asProblem(error)
    }
  }

  const again = (bookId: string) => {
    const before = byBook.get(bookId)
    // Another key: a refusal is kept under the old one, and a file that did arrive is known by its content.
    return before ? start(bookId, before.file, before.mode, before.query) : Promise.resolve()
  }
  const clear = (bookId: string) => byBook.delete(bookId)
  return { byBook, start, again, clear }
})
