/** Codes by a pattern: looked at, and made. */
import { api, body, type Schemas } from './client'

export type Pattern = Schemas['PreviewRequest']

const at = (id: string) => ({ params: { path: { id } } })

export const codes = {
  preview: (bookId: string, pattern: Pattern) => body(api.POST('/v1/books/{id}/codes/preview', { ...at(bookId), body: pattern })),
  generate: (bookId: string, wanted: Schemas['GenerateRequest']) => body(api.POST('/v1/books/{id}/codes/generate', { ...at(bookId), body: wanted })),
}
