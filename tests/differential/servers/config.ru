# Rack, with the middleware that Rails puts in front: HEAD is answered as GET, and a method may be overridden.
require 'json'
require 'rack'

RECORDS = File.open(ENV.fetch('RECORDS'), 'a').tap { |file| file.sync = true }

UUID = /\A\h{8}(-\h{4}){3}-\h{12}\z/

class App
  def call(env)
    @env = env
    dup.answer(Rack::Request.new(env))
  rescue JSON::ParserError, ArgumentError, TypeError, KeyError, NoMethodError, Encoding::CompatibilityError, Rack::Utils::InvalidParameterError,
         Rack::Utils::ParameterTypeError, Rack::QueryParser::ParamsTooDeepError, EOFError
    [400, {}, []]
  end

  def answer(request)
    method = request.request_method
    method = 'GET' if method == 'HEAD'
    path = Rack::Utils.unescape_path(request.path_info)
    case "#{method} #{path}"
    when 'POST /chat', 'POST /both'
      json = request.media_type == 'application/json'
      ran(path[1..], json ? member(request) : request.POST['session_id'])
    when 'POST /json' then ran('json', member(request))
    when 'POST /form' then ran('form', request.POST['session_id'])
    when 'GET /query' then ran('query', request.GET['session_id'])
    when 'PUT /put' then ran('put', request.GET['session_id'])
    when 'POST /header'
      ran('header', request.get_header('HTTP_X_SESSION_ID'), user: request.get_header('HTTP_X_USER_ID'), forwarded: request.get_header('HTTP_X_FORWARDED_FOR'))
    when 'POST /cookie' then ran('cookie', request.cookies['session_id'])
    when %r{\A(?:GET|POST) /thread/([^/]+)\z} then ran('thread', $1)
    when %r{\APOST /path/([^/]+)/runs\z} then ran('runs', $1)
    when %r{\APOST /mode/([^/]+)\z} then request.get_header('HTTP_X_MODE') == 'chat' ? ran('mode', $1) : none
    when %r{\APOST /halt/([^/]+)\z} then request.get_header('HTTP_X_MODE') == 'stop' ? none : ran('halt', $1)
    when %r{\APOST /kind/([^/]+)\z} then request.media_type == 'application/json' ? ran('kind', $1) : none
    when 'POST /action'
      fields = request.media_type == 'application/json' ? document(request) : request.POST
      fields['action'] == 'chat' ? ran('action', fields['session_id']) : none
    when 'POST /command'
      fields = document(request)
      fields['action'] == 'stop' ? none : ran('command', fields['session_id'])
    when 'POST /submit' then request.POST['action'] == 'chat' ? ran('submit', request.POST['session_id']) : none
    when 'POST /uuid' then ran('uuid', uuid(member(request)))
    when %r{\AGET /uuid/([^/]+)\z} then ran('uuid-path', uuid($1))
    when 'GET /uuidq' then ran('uuid-query', uuid(request.GET['session_id']))
    when 'POST /int' then ran('int', Integer(member(request), 10).to_s)
    when %r{\AGET /int/([^/]+)\z} then ran('int-path', Integer($1, 10).to_s)
    when 'GET /intq' then ran('int-query', Integer(request.GET['session_id'], 10).to_s)
    when 'GET /lower' then ran('lower', request.GET['session_id'].to_s.downcase)
    else [404, {}, []]
    end
  end

  private

  # The answer to a request that is no turn.
  def none = [204, {}, []]

  def document(request)
    JSON.parse(request.body.read)
  end

  def member(request)
    document(request).fetch('session_id')
  end

  def uuid(text)
    raise ArgumentError unless UUID.match?(text)

    text.downcase
  end

  # Notes a turn, past the proxy, and gives its answer. 0 is no session, by docs/sessions.md.
  def ran(route, session, more = {})
    text = session.is_a?(String) || session.nil? ? session : session.to_json
    text = text && text.dup.force_encoding('UTF-8').scrub
    turn = { case: @env['HTTP_X_CASE'], route: route, session: ['', '0'].include?(text) ? nil : text }.merge(more)
    turn = turn.transform_values { |value| value.is_a?(String) ? value.dup.force_encoding('UTF-8').scrub : value }
    RECORDS.write("#{turn.to_json}\n")
    body = { ran: true, route: route }.to_json
    [200, { 'content-type' => 'application/json', 'content-length' => body.bytesize.to_s }, [body]]
  end
end

use Rack::Head
use Rack::MethodOverride
run App.new
